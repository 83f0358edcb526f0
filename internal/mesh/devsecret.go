package mesh

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
)

// developmentSecret returns the secret that this user's nodes on this machine
// share, making it on first use, and the file it is in. The folder and the file
// belong to the user and are closed to others; anything else at their place,
// a symbolic link above all, is refused: the parent may be writable by everyone.
func developmentSecret(parent string) (secret, path string, err error) {
	if parent == "" {
		parent = os.TempDir()
	}
	dir := filepath.Join(parent, "diarkis-"+strconv.Itoa(os.Geteuid()))
	path = filepath.Join(dir, "cluster-secret")
	defer func() {
		if err != nil {
			err = fmt.Errorf("%w: development secret %s: %w; set DIARKIS_CLUSTER_SECRET_FILE instead", ErrConfig, path, err)
		}
	}()
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", path, err
	}
	st, err := os.Lstat(dir)
	if err != nil {
		return "", path, err
	}
	if err := checkOwned(st, fs.ModeDir); err != nil {
		return "", path, fmt.Errorf("folder: %w", err)
	}
	secret, err = readOwned(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err = makeSecret(dir, path); err == nil {
			secret, err = readOwned(path)
		}
	}
	return secret, path, err
}

// checkOwned refuses what is not of the wanted type, not ours, or open to others.
func checkOwned(st fs.FileInfo, want fs.FileMode) error {
	if st.Mode().Type() != want {
		return fmt.Errorf("has type %v, want %v", st.Mode().Type(), want)
	}
	if !ownedByUs(st) {
		return errors.New("belongs to another user")
	}
	if openToOthers(st) {
		return fmt.Errorf("has mode %v, want no access for others", st.Mode().Perm())
	}
	return nil
}

func readOwned(path string) (string, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|guarded, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return "", err
	}
	if err := checkOwned(st, 0); err != nil {
		return "", err
	}
	b, err := io.ReadAll(io.LimitReader(f, identityFileMax))
	return string(b), err
}

// makeSecret writes a new secret beside path and links it there, so that of two
// nodes starting at once one makes it and both read the same whole file.
func makeSecret(dir, path string) error {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails
	f, err := os.CreateTemp(dir, "cluster-secret-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.WriteString(hex.EncodeToString(b[:]) + "\n")
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}
