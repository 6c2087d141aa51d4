"""How tenants share the server: quotas, the prompt queue, token counts, usage."""
