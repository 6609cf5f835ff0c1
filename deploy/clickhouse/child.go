package clickhouse

import (
	"bufio"
	"context"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/ebitengine/purego"
)

const (
	// childEnv holds a child's order, and is what makes a process one.
	childEnv = "POSTRIDER_CLICKHOUSE_CHILD"
	// stopWord on standard input asks for an orderly end; its end alone means that
	// the parent is gone.
	stopWord = "stop"
	// orphanTime bounds the end of a child without a parent, so that a new Start on
	// the same folder and ports need not wait longer than three seconds.
	orphanTime = 2 * time.Second
	// keepOpen is the query that never ends: the library's server lives as long as
	// the statement it was called with. Its text finds it again to be ended, which
	// it notices between two rows.
	keepOpen = "SELECT sleepEachRow(0.1) FROM system.numbers WHERE 'postrider keeps the server open' != ''"
)

// childOrder is what a child is told.
type childOrder struct {
	Program      program
	Dir          string
	HTTP, Native netip.AddrPort
	Users        string
}

func (o childOrder) environ() (string, error) {
	text, err := json.Marshal(o)
	if err != nil {
		return "", fmt.Errorf("encoding the child's order: %w", err)
	}
	return childEnv + "=" + string(text), nil
}

// ChildMain is the main function of a process that Start made: it runs the server
// and does not return. In any other process it returns at once.
func ChildMain() {
	text := os.Getenv(childEnv)
	if text == "" {
		return
	}
	var o childOrder
	err := json.Unmarshal([]byte(text), &o)
	if err == nil {
		signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
		if o.Program.Library != "" {
			err = o.runLibrary()
		} else {
			err = o.runBinary()
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// parentOrders reads standard input and sends how long the server may take to end.
func parentOrders() <-chan time.Duration {
	orders := make(chan time.Duration, 1)
	go func() {
		lines := bufio.NewScanner(os.Stdin)
		if lines.Scan() && lines.Text() == stopWord {
			orders <- stopTime
			return
		}
		orders <- orphanTime
	}()
	return orders
}

// runLibrary runs the server inside this process and blocks until it has ended.
func (o childOrder) runLibrary() error {
	ending := make(chan struct{})
	go o.endLibrary(ending)
	err := o.serveLibrary()
	select {
	case <-ending:
		return nil // the query was cancelled, which it reports as an error
	default:
		return err
	}
}

// serveLibrary calls the library, which blocks until its query ends.
func (o childOrder) serveLibrary() error {
	handle, err := purego.Dlopen(o.Program.Library, purego.RTLD_NOW|purego.RTLD_GLOBAL)
	if err != nil {
		return fmt.Errorf("loading ClickHouse library: %w", err)
	}
	var queryCmdline func(argc int32, argv []*byte) uintptr
	var resultError func(result uintptr) string
	purego.RegisterLibFunc(&queryCmdline, handle, "chdb_query_cmdline")
	purego.RegisterLibFunc(&resultError, handle, "chdb_result_error")
	options, err := o.libraryUsers()
	if err != nil {
		return err
	}
	args := cStrings(append(options,
		"--path="+o.Dir, "--listen_host="+o.HTTP.Addr().String(),
		fmt.Sprintf("--http_port=%d", o.HTTP.Port()), fmt.Sprintf("--tcp_port=%d", o.Native.Port()),
		// Native first: whoever gets an answer over HTTP finds both open.
		"--query=SYSTEM START LISTEN TCP; SYSTEM START LISTEN HTTP; "+keepOpen+
			" SETTINGS max_block_size = 1, function_sleep_max_microseconds_per_block = 0 FORMAT Null",
	)...)
	result := queryCmdline(int32(len(args)-1), args) //nolint:gosec // six arguments
	return fmt.Errorf("running ClickHouse library: %s", resultError(result))
}

// libraryUsers returns the first arguments of the library, with those that name its users.
func (o childOrder) libraryUsers() ([]string, error) {
	if o.Users == "" {
		return []string{"clickhouse"}, nil
	}
	config := filepath.Join(filepath.Dir(o.Dir), "users-config.xml")
	text := "<clickhouse><users_config>" + escape(o.Users) + "</users_config></clickhouse>\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, fmt.Errorf("writing ClickHouse's configuration: %w", err)
	}
	return []string{"clickhouse", "--config-file=" + config}, nil
}

// endLibrary waits for the parent's order and ends the server. Cancelling the
// query that holds it open makes the library close its tables and return.
func (o childOrder) endLibrary(ending chan<- struct{}) {
	limit := <-parentOrders()
	close(ending)
	deadline := time.After(limit)
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	kill := "KILL QUERY WHERE query LIKE '" + strings.ReplaceAll(keepOpen, "'", `\'`) + "%' ASYNC"
	if _, err := query(ctx, o.HTTP, kill); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1) // not up yet, or not able to answer
	}
	<-deadline
	fmt.Fprintf(os.Stderr, "ClickHouse did not end within %v\n", limit)
	os.Exit(1)
}

// cStrings is a C argv, with its closing null pointer. Go's collector does not
// move what the heap holds, and the caller's slice keeps it alive.
func cStrings(args ...string) []*byte {
	argv := make([]*byte, 0, len(args)+1)
	for _, a := range args {
		argv = append(argv, &append([]byte(a), 0)[0])
	}
	return append(argv, nil)
}

// runBinary supervises a clickhouse binary and blocks until it has ended.
func (o childOrder) runBinary() error {
	config := filepath.Join(filepath.Dir(o.Dir), "config.xml")
	if err := os.WriteFile(config, []byte(o.serverConfig(config)), 0o600); err != nil {
		return fmt.Errorf("writing ClickHouse's configuration: %w", err)
	}
	cmd := exec.Command(o.Program.Binary, "server", "--config-file="+config) //nolint:noctx,gosec // ended below
	cmd.Dir = o.Dir
	cmd.Env = envWithout(os.Environ(), childEnv)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{os.NewFile(3, "lock")}
	cmd.SysProcAttr = diesWithParent()
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting %s: %w", o.Program.Binary, err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait() // how it ended is in ProcessState
	}()
	select {
	case <-ended:
		return fmt.Errorf("running %s: ended by itself: %v", o.Program.Binary, cmd.ProcessState)
	case limit := <-parentOrders():
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
			return nil
		case <-time.After(limit):
			_ = cmd.Process.Kill()
			<-ended
			return fmt.Errorf("stopping %s: killed after %v", o.Program.Binary, limit)
		}
	}
}

// serverConfig is a whole server configuration: one user without a password, who
// may come from loopback addresses, and none of the system log tables.
func (o childOrder) serverConfig(path string) string {
	users := path
	if o.Users != "" {
		users = o.Users
	}
	return fmt.Sprintf(`<?xml version="1.0"?>
<clickhouse>
  <logger><level>warning</level><console>1</console></logger>
  <path>%[1]s/</path>
  <tmp_path>%[1]s/tmp/</tmp_path>
  <user_files_path>%[1]s/user_files/</user_files_path>
  <format_schema_path>%[1]s/format_schemas/</format_schema_path>
  <listen_host>%[2]s</listen_host>
  <http_port>%[3]d</http_port>
  <tcp_port>%[4]d</tcp_port>
  <mark_cache_size>268435456</mark_cache_size>
  <user_directories><users_xml><path>%[5]s</path></users_xml></user_directories>
  <users_config>%[5]s</users_config>
  <default_profile>default</default_profile>
  <default_database>default</default_database>
  <profiles><default/></profiles>
  <quotas><default/></quotas>
  <users>
    <default>
      <password></password>
      <networks><ip>127.0.0.0/8</ip><ip>::1</ip></networks>
      <profile>default</profile>
      <quota>default</quota>
    </default>
  </users>
</clickhouse>
`, escape(o.Dir), o.HTTP.Addr(), o.HTTP.Port(), o.Native.Port(), escape(users))
}

// escape makes a text what XML shows it as.
func escape(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s)) // a strings.Builder takes everything
	return b.String()
}

func envWithout(environ []string, name string) []string {
	kept := make([]string, 0, len(environ))
	for _, e := range environ {
		if !strings.HasPrefix(e, name+"=") {
			kept = append(kept, e)
		}
	}
	return kept
}
