"""Options of the TRL backend that our own agents have no counterpart of."""

from agents.settings import TRLOptions as TRLOptions
