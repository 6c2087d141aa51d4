"""What a tenant trusts: who must have signed its adapters, and which sources requests may name."""
