package clickhouse

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
)

// libraryVersion is the release of the npm packages; ClickHouse's own number.
const libraryVersion = "26.7.3-stable.1"

// oldestBinary is the first ClickHouse release, by year, that a binary on PATH may
// be of. Debian's own package is of 2018 and knows none of what the audit needs.
const oldestBinary = 24

// program is what a child runs: one of the two is set.
type program struct {
	Binary, Library string
}

// findProgram is the binary on PATH if it is new enough, else the library,
// fetched if need be.
func findProgram(ctx context.Context, cfg Config) (program, error) {
	if path, err := exec.LookPath("clickhouse"); err == nil {
		year, err := binaryYear(ctx, path)
		if err == nil && year >= oldestBinary {
			return program{Binary: path}, nil
		}
		cfg.Log.Info("Passing over a clickhouse binary.", "path", path, "year", year, "oldest", oldestBinary, "error", err)
	}
	library, err := Fetch(ctx, cfg.CacheDir, cfg.Log)
	return program{Library: library}, err
}

// binaryYear is the first number of a binary's version, such as 26 of 26.7.2.1.
func binaryYear(ctx context.Context, path string) (int, error) {
	out, err := exec.CommandContext(ctx, path, "local", "--version").Output()
	if err != nil {
		return 0, fmt.Errorf("asking %s for its version: %w", path, err)
	}
	m := regexp.MustCompile(`version (\d+)\.\d+`).FindSubmatch(out)
	if m == nil {
		return 0, fmt.Errorf("asking %s for its version: answer %q", path, out)
	}
	return strconv.Atoi(string(m[1]))
}

// DefaultCacheDir is the user's cache folder for Postrider.
func DefaultCacheDir() (string, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("finding the user's cache folder: %w", err)
	}
	return filepath.Join(dir, "postrider"), nil
}

// Fetch gives the path of the library, and gets it with npm if it is not in the
// cache folder (empty: DefaultCacheDir). Any number of processes may call it at
// once: one fetches, into a folder that is renamed when it is whole.
func Fetch(ctx context.Context, cacheDir string, log *slog.Logger) (string, error) {
	pkg, err := packageName()
	if err != nil {
		return "", err
	}
	if cacheDir == "" {
		if cacheDir, err = DefaultCacheDir(); err != nil {
			return "", err
		}
	}
	name := "clickhouse-" + libraryVersion + "-" + runtime.GOOS + "-" + runtime.GOARCH
	folder := filepath.Join(cacheDir, name)
	library := filepath.Join(folder, "node_modules", filepath.FromSlash(pkg), "libchdb.so")
	if exists(library) {
		return library, nil
	}
	if err := os.MkdirAll(cacheDir, 0o750); err != nil {
		return "", fmt.Errorf("creating cache folder: %w", err)
	}
	lock, err := lockFile(ctx, folder+".lock")
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if exists(library) {
		return library, nil
	}
	log.Info("Fetching ClickHouse: about 180 MB, once.", "package", pkg, "version", libraryVersion, "folder", folder)
	if err := install(ctx, pkg, folder); err != nil {
		return "", err
	}
	if !exists(library) {
		return "", fmt.Errorf("fetching npm package %s@%s: %s is not in it", pkg, libraryVersion, library)
	}
	return library, nil
}

// install runs npm into a temporary folder and renames it. The caller holds the
// lock, so what stands there is left over from a fetch that was killed.
func install(ctx context.Context, pkg, folder string) error {
	partial := folder + ".partial"
	if err := os.RemoveAll(partial); err != nil {
		return fmt.Errorf("clearing an unfinished fetch: %w", err)
	}
	cmd := exec.CommandContext(ctx, "npm", "install", "--prefix", partial, "--no-save", "--no-package-lock", //nolint:gosec // constant but for the folder
		"--no-audit", "--no-fund", "--ignore-scripts", pkg+"@"+libraryVersion)
	out, err := cmd.CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("fetching npm package %s: npm is not on PATH: install Node.js with npm, or a clickhouse binary of 20%d or newer", pkg, oldestBinary)
	}
	if err != nil {
		return fmt.Errorf("fetching npm package %s@%s: %w: %s", pkg, libraryVersion, err, strings.TrimSpace(string(out)))
	}
	if err := os.Rename(partial, folder); err != nil {
		return fmt.Errorf("keeping npm package %s: %w", pkg, err)
	}
	return nil
}

// packageName is the npm package with the library for this machine.
func packageName() (string, error) {
	switch runtime.GOOS + "/" + runtime.GOARCH {
	case "linux/amd64":
		return "@chdb/lib-linux-x64-gnu", nil
	case "linux/arm64":
		return "@chdb/lib-linux-arm64-gnu", nil
	case "darwin/amd64":
		return "@chdb/lib-darwin-x64", nil
	case "darwin/arm64":
		return "@chdb/lib-darwin-arm64", nil
	}
	return "", fmt.Errorf("finding a ClickHouse library: none is published for %s/%s: put a clickhouse binary on PATH", runtime.GOOS, runtime.GOARCH)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
