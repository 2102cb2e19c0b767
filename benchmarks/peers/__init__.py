"""The programs that `cpu_peers.py` compares: each file is run by an interpreter of its own and prints JSON lines."""
