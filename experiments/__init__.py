"""Command lines that train, evaluate and measure; each module runs as a script."""
