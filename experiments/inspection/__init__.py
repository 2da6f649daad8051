"""The page that shows what a run answered, earned and learned: ``simpleseg inspect``."""
