"""Real requests for the methods of services, so that "claimed" means "works"."""
