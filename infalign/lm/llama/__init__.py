"""Passes of small Llamas on a CPU, quicker than the library; nothing needs them to be there."""
