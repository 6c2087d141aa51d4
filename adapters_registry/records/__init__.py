"""What the registry knows: tables, changes, and the catalog that is read from them."""
