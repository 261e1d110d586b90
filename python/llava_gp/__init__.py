"""The LLaVA part of the GlimpsePrune reference's interface, on the engine of glimpse; the LLaVA repository itself is not needed."""
