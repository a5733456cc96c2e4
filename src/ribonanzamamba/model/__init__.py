"""Networks that know what an RNA is."""
