"""The same training under TRL's trainers."""
