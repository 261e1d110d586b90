"""The interface of the GlimpsePrune reference, on the engine of glimpse: its scripts run with these classes in place of its own."""
