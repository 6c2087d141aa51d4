"""OpenTelemetry traces of requests: made of the request log's records, with vLLM's spans joined."""
