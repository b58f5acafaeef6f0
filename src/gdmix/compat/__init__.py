"""What shops that move in from LinkedIn's GDMix bring with them."""
