"""Scripts that an operator runs by hand against the real thing, with a token and for money. No suite starts them."""
