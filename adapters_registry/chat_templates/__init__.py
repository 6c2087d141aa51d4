"""Chat templates that came with adapters: a tenant's code, run in processes of its own."""
