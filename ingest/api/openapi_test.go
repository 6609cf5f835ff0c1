package api

import (
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"github.com/postrider/postrider/ingest/audit"
	"github.com/postrider/postrider/ingest/registry"
	"github.com/postrider/postrider/schemas"
)

// TestOpenAPIDescribesAnswers holds the description to the types that answers are made of.
func TestOpenAPIDescribesAnswers(t *testing.T) {
	var doc struct {
		Components struct {
			Schemas map[string]struct {
				Properties map[string]any `yaml:"properties"`
			} `yaml:"schemas"`
		} `yaml:"components"`
	}
	if err := yaml.Unmarshal(schemas.OpenAPI(), &doc); err != nil {
		t.Fatal(err)
	}
	for name, answer := range map[string]reflect.Type{
		"Webhook":       reflect.TypeFor[registry.WebhookView](),
		"RateLimit":     reflect.TypeFor[schemas.RateLimit](),
		"Header":        reflect.TypeFor[registry.HeaderView](),
		"ShownAuth":     reflect.TypeFor[registry.AuthView](),
		"Auth":          reflect.TypeFor[authBody](),
		"PublicKey":     reflect.TypeFor[registry.PublicKey](),
		"WebhookKeys":   reflect.TypeFor[webhookKeys](),
		"Rotation":      reflect.TypeFor[rotation](),
		"Key":           reflect.TypeFor[registry.KeyView](),
		"AcceptedEvent": reflect.TypeFor[accepted](),
		"BatchResult":   reflect.TypeFor[batchResult](),
		"WebhookList":   reflect.TypeFor[list[registry.WebhookView]](),
		"KeyList":       reflect.TypeFor[list[registry.KeyView]](),

		"AcceptedDelivery": reflect.TypeFor[accepted](),
		"FilterTest":       reflect.TypeFor[filterTest](),
		"FilterResult":     reflect.TypeFor[filterResult](),
		"Delivery":         reflect.TypeFor[audit.Delivery](),
		"DeliveryList":     reflect.TypeFor[list[audit.Delivery]](),
		"Outcome":          reflect.TypeFor[audit.Outcome](),
		"RoutedEvent":      reflect.TypeFor[audit.Event](),
		"EventList":        reflect.TypeFor[list[audit.Event]](),
		"Change":           reflect.TypeFor[audit.Change](),
		"ChangeList":       reflect.TypeFor[list[audit.Change]](),
		"WebhookStats":     reflect.TypeFor[audit.Stats](),
		"Percentiles":      reflect.TypeFor[audit.Percentiles](),
		"Retry":            reflect.TypeFor[retryBody](),
		"Job":              reflect.TypeFor[registry.JobView](),
	} {
		var want []string
		for _, field := range reflect.VisibleFields(answer) {
			if member, _, _ := strings.Cut(field.Tag.Get("json"), ","); !field.Anonymous && field.IsExported() {
				want = append(want, member)
			}
		}
		slices.Sort(want)
		if got := slices.Sorted(maps.Keys(doc.Components.Schemas[name].Properties)); !reflect.DeepEqual(got, want) {
			t.Errorf("OpenAPI's %s has %v, the answer %v", name, got, want)
		}
	}
}
