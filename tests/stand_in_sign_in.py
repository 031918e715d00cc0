"""The stand-in Hub's sign-in: an OpenID provider as Gradio and authlib need it, for several users."""

import secrets
import time
from base64 import b64decode
from functools import cached_property
from html import escape
from urllib.parse import parse_qs, urlencode, urlsplit

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse


class SignIn:
    """Part of a StandInHub; its tokens are the Hub's, so that whoami knows them.

    Attributes:
        client_id, client_secret: of the one app that is known here, for OAUTH_CLIENT_ID and OAUTH_CLIENT_SECRET.
        lives_s: how long a token counts from when it is given.
        granted: what users agree to, whatever is asked; None grants what is asked.
        tokens: user -> the tokens given to them, the newest last.
        next_tokens: user -> what they are given next, in place of a new one.
    """

    def __init__(self, hub):
        self.hub = hub
        self.client_id, self.client_secret = "test-client", secrets.token_hex(16)
        self.lives_s = 8 * 3600
        self.granted: str | None = None
        self.tokens: dict[str, list[str]] = {}
        self.next_tokens: dict[str, str] = {}
        self._codes: dict[str, dict] = {}

    def environment(self) -> dict[str, str]:
        """What the Hub sets for a Space with hf_oauth."""
        return {
            "OPENID_PROVIDER_URL": self.hub.url, "OAUTH_CLIENT_ID": self.client_id, "OAUTH_CLIENT_SECRET": self.client_secret,
            "OAUTH_SCOPES": "openid profile contribute-repos gated-repos",
        }

    def revoke(self, token: str) -> None:
        """As a user does in their settings."""
        del self.hub.users[token]

    def add_routes(self, app: FastAPI) -> None:
        app.add_api_route("/.well-known/openid-configuration", self.describe)
        app.add_api_route("/oauth/authorize", self.authorize)
        app.add_api_route("/oauth/token", self.token, methods=["POST"])
        app.add_api_route("/oauth/jwks", self.keys)

    @cached_property
    def _key(self):
        from joserfc.jwk import RSAKey

        return RSAKey.generate_key(2048, {"kid": "test", "use": "sig", "alg": "RS256"})

    async def describe(self):
        url = self.hub.url
        return {
            "issuer": url, "authorization_endpoint": f"{url}/oauth/authorize", "token_endpoint": f"{url}/oauth/token",
            "jwks_uri": f"{url}/oauth/jwks", "userinfo_endpoint": f"{url}/oauth/userinfo",
            "id_token_signing_alg_values_supported": ["RS256"], "response_types_supported": ["code"],
        }

    async def keys(self):
        return {"keys": [self._key.as_dict(private=False)]}

    async def authorize(self, request: Request):
        """Ask who it is, by links that a browser can click; with `user` in the address they have agreed."""
        asked = dict(request.query_params)
        if asked.get("client_id") != self.client_id or asked.get("response_type") != "code":
            return JSONResponse({"error": "invalid_client"}, 400)
        if urlsplit(asked["redirect_uri"]).path != "/login/callback":
            return JSONResponse({"error": "invalid_redirect_uri"}, 400)
        if not (user := asked.get("user")):
            names = sorted(set(self.hub.users.values()) | set(self.tokens))
            links = "".join(f'<p><a href="{escape(f"{request.url}&user={name}")}">{name}</a></p>' for name in names)
            return HTMLResponse(f"<!doctype html><html lang=en><title>Sign in</title><h1>Who are you?</h1>{links}</html>")
        code = secrets.token_urlsafe(16)
        self._codes[code] = {**asked, "user": user}
        back = asked["redirect_uri"]
        return RedirectResponse(f"{back}{'&' if '?' in back else '?'}{urlencode({'code': code, 'state': asked['state']})}", 302)

    async def token(self, request: Request):
        sent = {name: values[0] for name, values in parse_qs((await request.body()).decode()).items()}
        kind, _, basic = request.headers.get("authorization", "").partition(" ")
        known = b64decode(basic).decode() if kind == "Basic" else f"{sent.get('client_id')}:{sent.get('client_secret')}"
        if known != f"{self.client_id}:{self.client_secret}":
            return JSONResponse({"error": "invalid_client"}, 401)
        asked = self._codes.pop(sent.get("code", ""), None)  # a code counts once
        if asked is None or asked["redirect_uri"] != sent.get("redirect_uri"):
            return JSONResponse({"error": "invalid_grant"}, 400)
        user, scope = asked["user"], self.granted or asked["scope"]
        token = self.next_tokens.pop(user, "") or f"hf_oauth_{user}_{secrets.token_hex(8)}"
        self.hub.users[token] = user
        self.tokens.setdefault(user, []).append(token)
        return {
            "access_token": token, "token_type": "bearer", "expires_in": self.lives_s, "scope": scope,
            "id_token": self._id_token(user, asked.get("nonce", "")),
        }

    def _id_token(self, user: str, nonce: str) -> str:
        from joserfc import jwt

        now = int(time.time())
        claims = {
            "sub": user, "name": user.title(), "preferred_username": user, "profile": f"{self.hub.url}/{user}",
            "picture": f"{self.hub.url}/avatars/{user}.svg", "iss": self.hub.url, "aud": self.client_id, "iat": now,
            "exp": now + 3600, "nonce": nonce,
        }
        return jwt.encode({"alg": "RS256", "kid": "test"}, claims, self._key)
