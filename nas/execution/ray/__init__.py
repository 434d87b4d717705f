"""The executor over Ray actors. No other package imports ray, and importing this one alone does not either."""
