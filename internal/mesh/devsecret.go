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
	"time"
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
	if err := makeFolder(dir); err != nil {
		return "", path, err
	}
	secret, err = readOwned(path)
	if errors.Is(err, fs.ErrNotExist) {
		var b [32]byte
		_, _ = rand.Read(b[:]) // never fails
		if err = writeSecret(path, hex.EncodeToString(b[:])+"\n"); err == nil {
			secret, err = readOwned(path)
		}
	}
	return secret, path, err
}

// developmentSecretAge is how old the file of the development secret may get: cleaners of
// temporary directories take what nobody has touched for days.
const developmentSecretAge = time.Hour

// keepDevelopmentSecret puts the file back when a cleaner took it, so that nodes that start
// later have the same secret as those that run.
func keepDevelopmentSecret(path, secret string) error {
	st, err := os.Lstat(path)
	switch now := time.Now(); {
	case errors.Is(err, fs.ErrNotExist):
		if err := makeFolder(filepath.Dir(path)); err != nil {
			return err
		}
		return writeSecret(path, secret)
	case err != nil:
		return err
	case st.Mode().IsRegular() && now.Sub(st.ModTime()) > developmentSecretAge:
		return os.Chtimes(path, now, now)
	}
	return nil
}

// makeFolder makes the folder of the development secret, or makes sure of the one that is there.
func makeFolder(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	st, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	if err := checkOwned(st, fs.ModeDir); err != nil {
		return fmt.Errorf("folder: %w", err)
	}
	return nil
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

// writeSecret writes a secret beside path and links it there, so that of two
// nodes starting at once one makes it and both read the same whole file.
func writeSecret(path, secret string) error {
	f, err := os.CreateTemp(filepath.Dir(path), "cluster-secret-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.WriteString(secret)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}
