"""Services and drivers as records: who is registered, which driver fits, what its methods are."""
