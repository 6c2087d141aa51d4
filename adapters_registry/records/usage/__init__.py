"""What each tenant has used of each adapter: by the hour, and added up."""
