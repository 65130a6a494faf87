"""Timed comparisons with other ways; never part of the tests."""
