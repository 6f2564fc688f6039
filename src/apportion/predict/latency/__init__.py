"""How long an endpoint will take."""
