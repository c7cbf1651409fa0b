"""The recurrence: modalities are fused one at a time into a running context."""
