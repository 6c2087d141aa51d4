"""What happened to each request, and when: kept in memory for an hour, and written as log lines."""
