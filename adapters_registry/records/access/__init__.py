"""Who may use an adapter, and when nobody may."""
