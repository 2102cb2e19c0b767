"""The HTTP server: OpenAI's routes, states as a resource, guards against everybody outside."""
