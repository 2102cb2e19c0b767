"""What `serve_load.py` is made of: chats, the client that holds them, the servers that answer."""
