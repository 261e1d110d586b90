namespace glimpse {}
