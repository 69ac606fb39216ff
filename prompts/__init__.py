"""The wording of what models are asked, and the parsing of what they write."""
