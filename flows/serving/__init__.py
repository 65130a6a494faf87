"""`infalign serve`: answers of a registered model over HTTP."""
