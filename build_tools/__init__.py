"""What setup.py needs to build the compiled module; never installed."""
