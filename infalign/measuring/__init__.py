"""Win rates, limits and differences of policies, from rewards."""
