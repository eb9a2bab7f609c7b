package globusdev

import (
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"net/http"

	"github.com/go-jose/go-jose/v4"
)

// identityClaim is one identity of a set. In contrast to claims, the name of the user has the key
// username.
type identityClaim struct {
	Subject            string  `json:"sub"`
	Username           string  `json:"username"`
	Name               *string `json:"name"`
	Email              *string `json:"email"`
	Organization       *string `json:"organization"`
	IdentityProvider   string  `json:"identity_provider"`
	ProviderName       string  `json:"identity_provider_display_name"`
	LastAuthentication *int64  `json:"last_authentication"`
}

// claims are the claims of an ID token or of userinfo. Which claims there are depends on the
// scopes. An unknown name is null, not absent.
type claims map[string]any

// idClaims returns the claims of the ID token that belongs to an access token. The identities of set
// are linked to identity.
func (s *Server) idClaims(t *token, secret, nonce string, identity *Identity, set []*Identity) claims {
	c := t.claims(identity)
	if t.has(scopeProfile) {
		var list []identityClaim
		for _, i := range set {
			linked := identityClaim{
				Subject: i.ID, Username: i.Username, Name: nullable(i.Name), Email: nullable(i.Email), Organization: nullable(i.Organization),
				IdentityProvider: i.provider(), ProviderName: domainOf(i.Username),
			}
			if i.ID == t.Picked {
				linked.LastAuthentication = &t.Time
			}
			list = append(list, linked)
		}
		c["identity_set"] = list
	}
	if nonce != "" {
		c["nonce"] = nonce
	}
	sum := sha512.Sum512([]byte(secret))
	c["at_hash"] = base64.RawURLEncoding.EncodeToString(sum[:len(sum)/2])
	c["iss"], c["aud"] = s.cfg.Issuer, t.Client // a string, not a list
	c["iat"], c["exp"] = t.Issued, t.Expiry
	return c
}

// claims returns the claims about an identity that a token's scopes allow.
func (t *token) claims(identity *Identity) claims {
	c := claims{"sub": identity.ID, "last_authentication": t.Time}
	if t.has(scopeEmail) {
		c["email"] = nullable(identity.Email)
	}
	if t.has(scopeProfile) {
		c["preferred_username"] = identity.Username
		c["name"] = nullable(identity.Name)
		c["organization"] = nullable(identity.Organization)
		c["identity_provider"] = identity.provider()
		c["identity_provider_display_name"] = domainOf(identity.Username)
	}
	return c
}

func nullable(text string) *string {
	if text == "" {
		return nil
	}
	return &text
}

// sign adds the ID token to a response, if it has one: a JWT that is signed with RS512, with typ, and
// without a key ID.
func (s *Server) sign(response *tokenResponse) error {
	if response.claims == nil {
		return nil
	}
	key, err := s.key()
	if err != nil {
		return err
	}
	options := (&jose.SignerOptions{}).WithType("JWT")
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS512, Key: key}, options)
	if err != nil {
		return err
	}
	payload, err := json.Marshal(response.claims)
	if err != nil {
		return err
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		return err
	}
	response.IDToken, err = signed.CompactSerialize()
	return err
}

// serveKeys returns the public key, without an ID.
func (s *Server) serveKeys(w *recorder, _ *http.Request) error {
	key, err := s.key()
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: &key.PublicKey, Algorithm: string(jose.RS512), Use: "sig"}}})
	return nil
}

// serveDiscovery returns the same document as Globus, which does not list everything that is
// supported.
func (s *Server) serveDiscovery(w *recorder, _ *http.Request) error {
	at := func(path string) string { return s.cfg.Issuer + path }
	writeJSON(w, http.StatusOK, map[string]any{
		"issuer":                                s.cfg.Issuer,
		"authorization_endpoint":                at("/v2/oauth2/authorize"),
		"token_endpoint":                        at("/v2/oauth2/token"),
		"userinfo_endpoint":                     at("/v2/oauth2/userinfo"),
		"revocation_endpoint":                   at("/v2/oauth2/token/revoke"),
		"jwks_uri":                              at("/jwk.json"),
		"response_types_supported":              []string{"code", "token", "token id_token", "id_token"},
		"id_token_signing_alg_values_supported": []string{"RS512"},
		"scopes_supported":                      []string{"openid", "email", "profile"},
		"token_endpoint_auth_methods_supported": []string{"client_secret_basic"},
		"claims_supported":                      []string{"at_hash", "aud", "email", "exp", "name", "nonce", "preferred_username", "iat", "iss", "sub"},
		"subject_types_supported":               []string{"public"},
	})
	return nil
}
