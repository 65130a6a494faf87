"""`infalign up` and `down`: servers and their databases."""
