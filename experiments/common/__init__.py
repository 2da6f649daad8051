"""What all commands share: arguments, the run loop, logs, launch, reports."""
