"""`loraplex adapters`: what a person does to a running server's registry."""
