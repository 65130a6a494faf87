"""Samples made elsewhere: win rates and limits, and the calibrated reward as a callable."""
