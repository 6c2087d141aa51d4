"""What tenants share: quotas, the prompt queue, token counts, usage."""
