"""The tiny policy that ships with the project: how it is built, and its weights."""
