package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/postrider/postrider/schemas/clickhouse"
	"github.com/postrider/postrider/schemas/process"
)

func clickhouseCommand() *cobra.Command {
	return group("clickhouse", "Prepare ClickHouse for the audit",
		leaf("migrate", "Create the database and its tables, or bring them up to date", &migrate{}),
		leaf("grants", "Show the statements that let an organization read its part of the audit with SQL, and nothing else.\nThey are for a server with access control, and run by who may grant: postrider clickhouse grants … | clickhouse client", &grants{}),
	)
}

type migrate struct {
	clickhouse clickhouse.Config
	bodyDays   int
	rowDays    int
}

// Register implements process.Registrar.
func (m *migrate) Register(s *process.Settings) {
	m.clickhouse.Register(s)
	s.Int(&m.bodyDays, "keep-bodies-days", 0, "days for which events' bodies and responses are kept; 0 leaves what is set (at first 30)")
	s.Int(&m.rowDays, "keep-rows-days", 0, "days for which outcomes, deliveries and events are kept; 0 leaves what is set (at first two years)")
	process.Between(s, &m.bodyDays, "keep-bodies-days", 0, 36_500)
	process.Between(s, &m.rowDays, "keep-rows-days", 0, 36_500)
	s.Check(func() error {
		if m.bodyDays > m.rowDays && m.rowDays > 0 {
			return s.Invalid("keep-bodies-days", "at most --keep-rows-days: a body goes with its row")
		}
		if (m.bodyDays == 0) != (m.rowDays == 0) {
			return errors.Join(s.Invalid("keep-bodies-days", "set together with --keep-rows-days"))
		}
		return nil
	})
}

func (m *migrate) run(ctx context.Context, t *terminal) (err error) {
	conn, err := m.clickhouse.Open()
	if err != nil {
		return err //nolint:wrapcheck // it says what it did
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	database := m.clickhouse.DatabaseName()
	before, err := clickhouse.Version(ctx, conn, database)
	if err != nil {
		return err //nolint:wrapcheck // it says what it did
	}
	if err := clickhouse.Migrate(ctx, conn, database); err != nil {
		return err //nolint:wrapcheck // it says what it did
	}
	if m.bodyDays > 0 {
		const day = 24 * time.Hour
		keep := clickhouse.Retention{Bodies: time.Duration(m.bodyDays) * day, Rows: time.Duration(m.rowDays) * day}
		if err := clickhouse.SetRetention(ctx, conn, database, keep); err != nil {
			return err //nolint:wrapcheck // it says what it did
		}
	}
	after, err := clickhouse.Version(ctx, conn, database)
	if err != nil {
		return fmt.Errorf("reading the version after migrating: %w", err)
	}
	if t.asJSON {
		return t.showJSON(map[string]any{"database": database, "version_before": before, "version": after})
	}
	if before == after {
		return t.showLine("Database %s is at version %d already.", database, after)
	}
	return t.showLine("Database %s was at version %d and is at version %d now.", database, before, after)
}

// grants shows statements, and runs none: whoever may grant is no user of ours.
type grants struct {
	clickhouse clickhouse.Config
	reader     clickhouse.Reader
}

// Register implements process.Registrar.
func (g *grants) Register(s *process.Settings) {
	g.clickhouse.Register(s)
	s.String(&g.reader.Organization, "organization", "", "whose rows it may read; its role is postrider_<organization>")
	s.Bool(&g.reader.Payloads, "payloads", false, "let it read bodies too: of events, and of what targets answered")
	s.String(&g.reader.Service, "service-user", "", "user of ingest and sender, who is to see all rows: where a table has row policies, others may see none")
	s.Required("organization")
}

func (g *grants) run(_ context.Context, t *terminal) error {
	g.reader.Database = g.clickhouse.DatabaseName()
	statements, err := clickhouse.Grants(g.reader)
	if err != nil {
		return err //nolint:wrapcheck // it says what it did
	}
	if t.asJSON {
		return t.showJSON(map[string]any{"role": g.reader.Role(), "statements": statements})
	}
	for _, statement := range statements {
		if err := t.showLine("%s;", statement); err != nil {
			return err
		}
	}
	return nil
}
