package disk

import (
	"bytes"
	"fmt"
	"os"
)

const maxSecretBytes = 16 << 10

// ReadSecret reads a file that holds nothing but a secret, such as a password. It refuses one that other
// users can read.
func ReadSecret(name string) (string, error) {
	info, err := os.Stat(name)
	if err != nil {
		return "", err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("%s can be read by others (mode %04o): chmod 600 %s", name, info.Mode().Perm(), name)
	}
	if info.Size() > maxSecretBytes {
		return "", fmt.Errorf("%s has %d bytes, too many for a secret", name, info.Size())
	}
	data, err := os.ReadFile(name)
	if err != nil {
		return "", err
	}
	secret := string(bytes.TrimRight(data, "\r\n"))
	if secret == "" {
		return "", fmt.Errorf("%s is empty", name)
	}
	return secret, nil
}
