"""The built-in token issuer: OAuth 2 and OpenID Connect under ``/auth/``, with the routes and habits of Globus Auth."""
