"""The page on which a policy answers: what it asks, how it looks, and how it is served."""
