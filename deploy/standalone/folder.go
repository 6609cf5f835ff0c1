package main

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/postrider/postrider/schemas"
	"github.com/postrider/postrider/schemas/process"
)

const (
	keyRingFile  = "key-ring"
	adminKeyFile = "admin-key"
)

var errFolderInUse = errors.New("in use by another process")

// folder is the data folder, locked until it is closed.
type folder struct {
	path     string // absolute
	lock     *os.File
	keyRing  string
	adminKey string
	// adminKeyPath is where the admin key is kept; empty if it was given. madeKey
	// says that it was made now.
	adminKeyPath string
	madeKey      bool
}

// openFolder locks the folder, which it makes if need be, with its secrets. A
// given admin key counts and is not kept.
func openFolder(path, givenKey string) (_ *folder, err error) {
	absolute, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("finding folder %q: %w", path, err)
	}
	f := &folder{path: absolute, adminKey: givenKey}
	if f.lock, err = lockFolder(absolute, true); err != nil {
		return nil, &process.SettingsError{Problems: []string{fmt.Sprintf("--data = %q: must be a folder that no other process uses: %v", path, err)}}
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.close())
		}
	}()
	if f.keyRing, _, err = keep(filepath.Join(absolute, keyRingFile), schemas.NewKeyRing("standalone")); err != nil {
		return nil, err
	}
	if givenKey != "" {
		return f, nil
	}
	f.adminKeyPath = filepath.Join(absolute, adminKeyFile)
	f.adminKey, f.madeKey, err = keep(f.adminKeyPath, newAdminKey()+"\n")
	f.adminKey = strings.TrimSpace(f.adminKey)
	return f, err
}

func (f *folder) close() error {
	return f.lock.Close() //nolint:wrapcheck // never happens to a file not written to
}

// lockFolder takes the folder's lock, which goes with the process however it
// ends. Where it may not make the folder and there is none, there is no lock either.
func lockFolder(path string, makeIt bool) (*os.File, error) {
	flags := os.O_RDWR
	if makeIt {
		if err := os.MkdirAll(path, 0o700); err != nil {
			return nil, fmt.Errorf("creating folder: %w", err)
		}
		flags |= os.O_CREATE
	}
	lock, err := os.OpenFile(filepath.Join(path, "lock"), flags, 0o600) //nolint:gosec // the operator names the folder
	if !makeIt && errors.Is(err, fs.ErrNotExist) {
		return nil, nil //nolint:nilnil // nobody can hold what is not there
	}
	if err != nil {
		return nil, fmt.Errorf("opening lock: %w", err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = errFolderInUse
		}
		return nil, errors.Join(fmt.Errorf("locking: %w", err), lock.Close())
	}
	return lock, nil
}

// keep returns a file's text; where there is no file, it makes one with the
// given text, whole or not at all.
func keep(path, text string) (kept string, made bool, err error) {
	found, err := os.ReadFile(path) //nolint:gosec // in the operator's folder
	if err == nil {
		return string(found), false, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", false, fmt.Errorf("reading secret: %w", err)
	}
	partial := path + ".partial"
	if err := writeSynced(partial, text); err != nil {
		return "", false, fmt.Errorf("keeping secret: %w", err)
	}
	if err := os.Rename(partial, path); err != nil {
		return "", false, fmt.Errorf("keeping secret: %w", err)
	}
	return text, true, nil
}

func writeSynced(path, text string) (err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600) //nolint:gosec // in the operator's folder
	if err != nil {
		return fmt.Errorf("creating file: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.WriteString(text); err != nil {
		return fmt.Errorf("writing: %w", err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("syncing: %w", err)
	}
	return nil
}

// newAdminKey returns a key of 256 random bits.
func newAdminKey() string {
	key := make([]byte, 32)
	_, _ = rand.Read(key) // never fails since Go 1.24
	return "postrider_admin_" + base64.RawURLEncoding.EncodeToString(key)
}
