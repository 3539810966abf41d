"""Who may do what, and what is recorded of it.

`guard` admits a request: by a key of the keys file (`keys`) or a token of an OpenID issuer (`oidc`), at
the rate that its caller has (`rate`). `audit` records reads of sensitive facets and erasures. `kafka` turns
settings into each Kafka client's options for TLS and SASL.
"""
