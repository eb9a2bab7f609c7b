package broker

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
)

// scramClient is the client's side of SCRAM-SHA-256 (RFC 5802) for one login
// of a user whose salted password is known. Salting is what makes SCRAM slow,
// and is for passwords that people choose; ours are random already, so the
// broker is given the salted form and no login has to derive it.
type scramClient struct {
	salted     []byte
	firstBare  []byte // the first message without its header
	serverSign []byte // what the server will prove itself with
}

var errScram = errors.New("the broker broke the rules of SCRAM")

// first returns the client's first message.
func (s *scramClient) first(user string) []byte {
	s.firstBare = []byte("n=" + user + ",r=" + rand.Text())
	return append([]byte("n,,"), s.firstBare...)
}

// final answers the server's first message, "r=NONCE,s=SALT,i=ITERATIONS".
func (s *scramClient) final(serverFirst []byte) ([]byte, error) {
	nonce, _, ok := bytes.Cut(serverFirst, []byte(","))
	if !ok || !bytes.HasPrefix(nonce, s.firstBare[bytes.Index(s.firstBare, []byte("r=")):]) {
		return nil, errScram
	}
	message := append([]byte("c=biws,"), nonce...) // "n,," in base64
	signed := bytes.Join([][]byte{s.firstBare, serverFirst, message}, []byte(","))

	clientKey := sign(s.salted, []byte("Client Key"))
	storedKey := sha256.Sum256(clientKey)
	s.serverSign = sign(sign(s.salted, []byte("Server Key")), signed)
	proof := make([]byte, sha256.Size)
	subtle.XORBytes(proof, clientKey, sign(storedKey[:], signed))
	return base64.StdEncoding.AppendEncode(append(message, ",p="...), proof), nil
}

// verify checks the server's final message.
func (s *scramClient) verify(serverFinal []byte) error {
	want := base64.StdEncoding.AppendEncode([]byte("v="), s.serverSign)
	if !hmac.Equal(serverFinal, want) {
		return errScram
	}
	return nil
}

func sign(key, message []byte) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write(message)
	return mac.Sum(nil)
}
