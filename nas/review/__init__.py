"""What a run found, for people: tables, a picture and a page. Plain records in, files out; no torch, no store."""
