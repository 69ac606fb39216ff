"""Who scores responses: one file a judge, one small protocol."""
