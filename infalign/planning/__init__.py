"""What a run takes before anything is rented: bytes, tokens, hours, and what accuracy it buys."""
